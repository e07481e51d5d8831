"""The kernel side: C in bpf/src, Python beside it (compile, load, pin, layouts, maps)."""
