"""What `ops.select` is made of: trust levels, filters, environments and the diverse choice."""
