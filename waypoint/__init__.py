"""The L7 proxy: sans-io protocol engines, routing, resilience. Nothing here yet but its place in the import contracts."""
