"""A hostile campaign, bounded and seeded: what hrbench does when it is killed, fed nonsense, or reads damaged files.

    python -m tools.campaign --python PATH/TO/python --output results/campaign.md
    python -m tools.campaign --family inputs --only 17
    python -m tools.campaign --family kills --kills 50 --targets toy,evaluate
    python -m tools.campaign --family load

It drives hrbench from outside, by the interpreter that is named, so that the same cases can be run against any
version; see ``server.py`` for how hundreds of commands are run in minutes. Each case is judged by the campaign itself:

- wrong number: exit 0, and numbers or records other than they must be, without a warning
- traceback: a stack for what is a user's or a file's fault, or death by a signal
- hang: time or memory used up
- outside: something changed outside the output folder, or was read from outside a runs folder
- lost: something finished, or the user's own, is gone
- silent: damage, or a wrong input, believed without a word
- other: refused without naming what is wrong, failed without need, one damaged run takes all, files left over
"""
