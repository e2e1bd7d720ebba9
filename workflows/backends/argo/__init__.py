"""Runs on Kubernetes: workflows for an Argo server, rendered, submitted and followed."""
