"""The parts of the admin process that finance works with, composed."""

from gateway.clock import SystemClock
from gateway.config import Config
from gateway.services.reach import Reach
from gateway.store.approvals import ApprovalStore
from gateway.store.database import Database
from gateway.web.gate import Face
from gateway.web.renderer import Renderer
from keys.audit import AuditPen


def finance_faces(
    config: Config, database: Database, pen: AuditPen, clock: SystemClock, renderer: Renderer
) -> list[Face]:
    """Every face of finance, each with its pages and its JSON."""
    reach = Reach(ApprovalStore(database).departments)
    _ = config, pen, clock, renderer, reach
    return []
