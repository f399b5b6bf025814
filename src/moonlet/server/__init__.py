"""The OpenAI-compatible HTTP API of one model: `app.py` has the routes, `wire.py` the request and response shapes."""
