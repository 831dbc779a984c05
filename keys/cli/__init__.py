"""The command line of security staff."""
