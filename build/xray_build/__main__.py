"""`python -m xray_build` is `xray-build`."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="xray-build")
