"""The command line; see `gateway.cli.main`."""
