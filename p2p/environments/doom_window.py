"""ViZDoom's engine in a window of its own, where it runs by itself; it still tells time and pose."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from p2p.environments.doom_engine import LevelMap, engine_errors, running_engine

TITLE = "VIZDOOM"
TICRATE = 40  # of the engine: two tics are 1/20 s

BINDINGS = {
    "w": "+forward",
    "s": "+back",
    "a": "+moveleft",
    "d": "+moveright",
    "leftarrow": "+left",
    "rightarrow": "+right",
    "space": "+attack",
    "mouse1": "+attack",
    "shift": "+speed",
    "e": "+use",
    **{str(number): f"slot {number}" for number in range(1, 5)},
}


class DoomWindow:
    """ViZDoom in a window, with the keyboard and the mouse; the engine still tells time and pose."""

    def __init__(self, content: str | LevelMap, scale: int = 1) -> None:
        self.title, self.process = TITLE, None
        self._name, self._ended = str(content), ""
        bindings = "\n".join(f"{key}={command}" for key, command in BINDINGS.items())
        settings = f"[GlobalSettings]\nUse_Mouse=true\n[Doom.Bindings]\n{bindings}\n"
        self._stack = ExitStack()
        engine = running_engine(content, settings, window=True, ticrate=TICRATE, scale=scale)
        self._engine = self._stack.enter_context(engine)
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="doom", daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        """The engine runs by itself; what is known of it goes on only when it is asked to advance."""
        while not self._closing.is_set():
            try:
                with self._asking():
                    if not self._engine.is_episode_finished():
                        self._engine.advance_action(1)
            except ValueError as error:
                self._ended = str(error)
                return
            self._closing.wait(0.002)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """One question to the engine at a time; its errors are ValueErrors."""
        with self._lock, engine_errors(self._name):
            yield

    def new_episode(self, seed: int) -> None:
        with self._asking():
            self._engine.set_seed(seed % 2**31)
            self._engine.new_episode()

    @property
    def done(self) -> bool:
        with self._asking():
            return bool(self._engine.is_episode_finished())

    @property
    def score(self) -> float:
        with self._asking():  # this mode loses rewards; the time alive does not lie
            return float(self._engine.get_episode_time())

    def ended(self) -> str:
        return self._ended

    def state(self) -> str:
        import vizdoom

        names = ("POSITION_X", "POSITION_Y", "ANGLE")
        with self._asking():
            x, y, angle = (self._engine.get_game_variable(getattr(vizdoom.GameVariable, name)) for name in names)
        return f"position {x:.0f} {y:.0f}, angle {angle:.0f}"

    def close(self) -> None:
        self._closing.set()
        self._thread.join(5)
        self._stack.close()
