"""`python -m xray_build.repository` writes the configurations of a model repository."""

from .write_configs import main

if __name__ == "__main__":
    main(prog_name="python -m xray_build.repository")
