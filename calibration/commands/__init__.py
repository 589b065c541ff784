"""The subcommands of ``ohmformer``: their options, and what they print."""
