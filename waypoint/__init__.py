"""The L7 proxy: sans-io protocol engines, routing, resilience; comes with its own issue. Nothing here yet but its place."""
