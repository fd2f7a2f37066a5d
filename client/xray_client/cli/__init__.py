"""Commands of `xray-client`, one module each."""
