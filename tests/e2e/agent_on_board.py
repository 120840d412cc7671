"""`edge-agent`, on a board whose files lie below the folder that is the first argument."""

import sys
from functools import partial
from pathlib import Path

from agent.cli import main
from agent.daemon import build
from agent.sensors.reader import BoardReader
from agent.sensors.replay import open_board

board = open_board(Path(sys.argv.pop(1)))
build.BoardReader = partial(BoardReader, files=board.files, ask=board.ask)
sys.exit(main())
