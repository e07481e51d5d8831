"""What an agent says of itself over HTTP.

`view` is what this package needs of the running agent, `report` turns it into the JSON that `gossamer … -o json` prints
(pure), `server` holds the aiohttp applications and their listeners: admin (unix socket: everything; 127.0.0.1:15000:
read-only), metrics :15020 and readiness :15021. No secret is ever in an answer: this package is never given one.
"""
