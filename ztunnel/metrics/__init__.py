"""What Prometheus may ask a node's agent for.

`labels` says who and what a connection is in Istio's words, `traffic` counts connections and bytes per set of labels,
`node` reads the rest off the agent at each scrape, `exposition` writes all of it as text; `ztunnel.admin` serves it.
"""
