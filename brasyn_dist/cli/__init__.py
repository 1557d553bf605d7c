"""Commands of `brasyn`: one module for each subcommand; main.py selects it, command.py parses its options."""
