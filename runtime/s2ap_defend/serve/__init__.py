"""The inference server: Open Inference Protocol v2 over HTTP, a batcher, metrics and a page to try it."""

from s2ap_defend.serve.app import create_app
from s2ap_defend.serve.config import ServerConfig
from s2ap_defend.serve.server import serve

__all__ = ["ServerConfig", "create_app", "serve"]
