"""The demo: real A/B tests played against a running system, over its public contract."""

from bandolero_service.demo.run import DemoOptions, run_demo

__all__ = ["DemoOptions", "run_demo"]
