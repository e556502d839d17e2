"""HTTP: the data plane on plain ASGI routes, everything else on FastAPI."""
