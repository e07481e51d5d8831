"""A sans-io HTTP/2 connection over libnghttp2."""
