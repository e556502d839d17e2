"""`python -m bandolero_service` is the command `bandolero`."""

from bandolero_service.cli import main

if __name__ == "__main__":
    main()
