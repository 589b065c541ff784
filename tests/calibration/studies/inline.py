"""An engine without processes, for what may go wrong in the loop that gives work to engines."""

from calibration.studies.events import Finished, Lost, Ready
from calibration.studies.worker import Worker


class Inline:
    """One worker in this process; ``upset`` takes the place of an event, before each is passed on."""

    workers = 1

    def __init__(self, plan, upset=lambda event: event):
        self.plan, self.upset = plan, upset
        self.closed = False
        self._start()

    def _start(self):
        self._worker, self._coming = Worker(self.plan.loaded.__getitem__), iter([Ready()])

    def submit(self, worker, unit):
        self._coming = iter([*self._worker.run(unit), Finished()])

    def events(self, timeout):
        for event in self._coming:
            found = self.upset(event)
            if isinstance(found, Lost):
                self._start()
            yield 0, found
            return

    def close(self):
        self.closed = True
