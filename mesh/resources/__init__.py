"""The Kubernetes and Istio kinds we accept, typed."""
