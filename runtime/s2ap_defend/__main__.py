"""`python -m s2ap_defend` is `s2ap-defend`."""

from s2ap_defend.commands.main import main

if __name__ == "__main__":
    main()
