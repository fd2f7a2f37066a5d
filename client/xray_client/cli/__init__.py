"""The commands of `xray-client`, one module for each, over the public API."""
