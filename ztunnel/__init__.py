"""The node agent: enrols pods, captures their connections, decides, and carries them through mutual-TLS tunnels."""
