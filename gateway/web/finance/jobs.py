"""Imports that people began: each runs by itself, and its page asks how far it is.

They live in this process only. One that the process took with it has left nothing behind; its page is gone, and the
file can be sent again.
"""

import asyncio
from dataclasses import dataclass, field

import structlog
from aiohttp import web

from gateway.errors import GatewayError, NotFound, Unavailable
from gateway.formats import Kind
from gateway.log import described
from gateway.rules.ids import new_id
from gateway.rules.staff import Staff
from gateway.services.imports import Imported, Imports
from gateway.web.upload import Upload

KEPT_MAX = 64
"""So many jobs are remembered, the latest ones."""

FAILED = "Something went wrong here. It has been noted, and nothing was imported."


@dataclass(slots=True)
class Job:
    """One import. `read` are bytes, of `size`."""

    job_id: str
    staff_id: str
    kind: Kind
    format: str
    size: int
    lines: int = 0
    read: int = 0
    imported: Imported | None = None
    refused: GatewayError | None = None
    task: "asyncio.Task[None] | None" = field(default=None, repr=False)


class Jobs:
    """Begins imports and knows how far they are."""

    def __init__(self, imports: Imports) -> None:
        self._imports = imports
        self._jobs: dict[str, Job] = {}

    def begin(self, staff: Staff, kind: Kind, name: str, upload: Upload, request_id: str) -> Job:
        """Import a file from now on; raises as `Imports.require` does."""
        self._imports.require(staff, kind, name)
        job = Job(new_id("job"), staff.staff_id, kind, name, upload.size)
        upload.keep()
        job.task = asyncio.create_task(self._run(job, staff, name, upload, request_id))
        self._jobs[job.job_id] = job
        ended = [each.job_id for each in self._jobs.values() if each.task is None]
        for job_id in ended[: max(len(self._jobs) - KEPT_MAX, 0)]:
            del self._jobs[job_id]
        return job

    def find(self, staff: Staff, job_id: str) -> Job:
        """A job of one's own; raises `NotFound`."""
        job = self._jobs.get(job_id)
        if job is None or job.staff_id != staff.staff_id:
            raise NotFound
        return job

    async def end(self, _application: web.Application | None = None) -> None:
        """Give up what runs: it leaves nothing behind."""
        running = [job.task for job in self._jobs.values() if job.task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    async def _run(self, job: Job, staff: Staff, name: str, upload: Upload, request_id: str) -> None:
        def progress(lines: int) -> None:
            job.lines, job.read = lines, upload.file.tell()

        try:
            job.imported = await self._imports.take(staff, job.kind, name, upload.file, request_id, progress)
        except GatewayError as error:
            job.refused = error
        except Exception as error:  # noqa: BLE001 - whatever it was, the page must say that it is over
            structlog.get_logger().error("import.failed", **described(error), request_id=request_id)
            job.refused = Unavailable(FAILED)
        finally:
            upload.close()
            job.task = None
