"""A small Argo on loopback: what it refuses, Argo refuses; what runs here, should run there.

Written from Argo's documented behaviour and independent of the code that renders manifests.

    server, routes   the HTTP interfaces, with faults on demand
    validate         what is checked before a workflow is taken
    engine           the controller: DAGs, deadlines, stop and retry
    nodes            the status: nodes, names, arguments from outputs
    tasks            attempts of a task and what decides about the next
    pods, podspec    one pod: spec, environment, process, logs, why it ended
    faults           what goes wrong when a test wants it
    storage          artifacts: tgz or plain, in a folder or in S3
    expressions      {{variables}}, {{=expressions}}, `depends`
    fixtures         for pytest

What it does not know it refuses with 501, loudly, rather than to ignore it.
"""
