"""The L7 proxy: sans-io protocol engines, routing, resilience. So far its place in the import contracts, no more."""
