"""`kfed`: each command is one function that gets the parsed arguments and returns an exit status."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from cli import arguments
from cli.api import ApiError
from cli.usage import DONE, FAILED, USAGE, Usage, settings_of
from runtime.settings import SettingsError


def _command(options: argparse.Namespace) -> int:
    # What a command needs is imported when it is called: `kfed topics` need not wait for servers to be loaded.
    if options.command in ("run", "serve"):
        settings = settings_of(options, needed=True)
        assert settings is not None
        from cli import serve

        return serve.run(settings, options)
    if options.command == "version":
        from cli import show

        return show.version(options)
    if options.command in ("config", "store", "mirror") or _changes(options):
        from cli import change

        return change.run(options)
    if options.command == "eject" or getattr(options, "move_home", None) is not None:
        from cli import homes

        return homes.run(options)
    if options.command == "migrate" or _about_operation(options):
        from cli import migrate

        return migrate.run(options)
    if options.command == "verify":
        from cli import verify

        return verify.run(options)
    from cli import show

    if options.command == "offsets":
        return show.offset(options)
    return show.run(options)


def _changes(options: argparse.Namespace) -> bool:
    return any(getattr(options, one, None) is not None for one in ("home", "dead"))


def _about_operation(options: argparse.Namespace) -> bool:
    return options.command == "operations" and any((options.wait, options.pause, options.resume, options.abort))


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0 done, 1 failed, 2 wrong usage or configuration."""
    options = arguments.parse(sys.argv[1:] if argv is None else argv)
    return guarded(lambda: _command(options))


def guarded(call: Callable[[], int]) -> int:
    """Failures that a user can act on, as one line on stderr."""
    try:
        return call()
    except (SettingsError, Usage) as error:
        print(f"kfed: {error}", file=sys.stderr)
        return USAGE
    except ApiError as error:
        print(f"kfed: {error}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:  # `kfed topics | head`
        sys.stderr.close()
        return DONE
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
