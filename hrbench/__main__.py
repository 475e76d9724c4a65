"""The ``hrbench`` command, and ``python -m hrbench``: Ctrl-C and SIGTERM get a word whenever they come."""

import signal
import sys

__all__ = ["main"]

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped by SIGTERM"}


def main() -> int:
    """Run the command line, see :func:`hrbench.cli.main`.

    Returns
    -------
    int
        The exit status; 130 after Ctrl-C, 143 after SIGTERM, but where ``run`` makes use of that.
    """
    came: list[int] = []

    def interrupt(number: int, _: object) -> None:
        came.append(number)
        raise KeyboardInterrupt

    # Others are to be ignored.
    heeded = [n for n in _WORDS if signal.getsignal(n) in (signal.SIG_DFL, signal.default_int_handler)]
    for number in heeded:
        signal.signal(number, interrupt)
    try:
        from hrbench.cli import main as run

        status = run()
    except BaseException:  # while a class is made, Python 3.11 turns an interruption into another error
        if not came:
            raise
        status = 1
    for number in heeded:
        signal.signal(number, signal.SIG_DFL)  # once more, and it is over at once
    if not (came and status):
        return status
    print(f"hrbench: {_WORDS[signal.Signals(came[0])]}; the same command continues where it was", file=sys.stderr)
    return 128 + came[0]


if __name__ == "__main__":
    sys.exit(main())
