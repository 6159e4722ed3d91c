"""Entry point of `python -m sightline`, which launchers use."""

from sightline.cli import main

if __name__ == "__main__":
    main()
