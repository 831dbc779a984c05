"""The parts of the admin process that finance works with, composed."""

from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from gateway.clock import SystemClock
from gateway.config import Config, city_of
from gateway.rules.card import Brands
from gateway.rules.settlement import FeeSchedule
from gateway.services.audit_trail import AuditTrail
from gateway.services.charge_search import ChargeSearch
from gateway.services.closes import Closes
from gateway.services.exceptions import Exceptions
from gateway.services.exports import Exports
from gateway.services.imports import Imports
from gateway.services.looks import Looks
from gateway.services.reach import Reach
from gateway.services.reconciliations import Reconciliations
from gateway.services.scratch import clear_scratch
from gateway.services.today import TodayPage
from gateway.store.approvals import ApprovalStore
from gateway.store.audit_trail import AuditTrailStore
from gateway.store.books import BookStore
from gateway.store.charge_search import ChargeStore
from gateway.store.closes import CloseStore
from gateway.store.database import Database
from gateway.store.exceptions import ExceptionStore
from gateway.store.exports import ExportStore
from gateway.store.imports import ImportStore
from gateway.store.reconciliations import ReconciliationStore
from gateway.store.today import TodayStore
from gateway.web.finance.audit import AuditFace
from gateway.web.finance.charges import ChargesFace
from gateway.web.finance.closes import ClosesFace
from gateway.web.finance.exceptions import ExceptionsFace
from gateway.web.finance.exports import ExportsFace
from gateway.web.finance.imports import ImportsFace
from gateway.web.finance.jobs import Jobs
from gateway.web.finance.reconciliations import ReconciliationsFace
from gateway.web.finance.today import TodayFace
from gateway.web.gate import Face
from gateway.web.renderer import Renderer
from keys.audit import AuditPen
from keys.process_keys import read_process_keys
from keys.secret import Secret


def imports_of(config: Config, database: Database, pen: AuditPen, clock: SystemClock) -> Imports:
    """What takes files in, for the site and for the watched folder."""
    reach = Reach(ApprovalStore(database).departments)
    return Imports(ImportStore(database), reach, pen, clock, city_of(config))


def reconciliations_of(config: Config, database: Database, pen: AuditPen, clock: SystemClock) -> Reconciliations:
    """What reconciles, for the site and for who closes."""
    section = config.finance
    return Reconciliations(
        ReconciliationStore(database),
        Reach(ApprovalStore(database).departments),
        pen,
        clock,
        zone=city_of(config),
        fees=FeeSchedule(section.fee_basis_points, section.fee_fixed_minor),
        deposit_days_max=section.deposit_days_max,
    )


def exceptions_of(config: Config, database: Database, pen: AuditPen, clock: SystemClock) -> Exceptions:
    """What takes staff's word on differences."""
    return Exceptions(
        ExceptionStore(database),
        Reach(ApprovalStore(database).departments),
        pen,
        clock,
        brands=Brands.load(),
        city=city_of(config),
        alone_minor_max=config.finance.resolve_minor_max,
    )


def closes_of(config: Config, database: Database, pen: AuditPen, clock: SystemClock) -> Closes:
    """What closes dates, and signs for it; raises `KeystoreRefused` where there is no key for that."""

    def keys() -> Mapping[int, Secret[bytes]]:
        return read_process_keys(Path(config.keys.secrets), "admin", "close-pack")

    keys()  # before anything is served
    return Closes(
        CloseStore(database),
        Reach(ApprovalStore(database).departments),
        reconciliations_of(config, database, pen, clock),
        pen,
        clock,
        brands=Brands.load(),
        city=city_of(config),
        keys=keys,
    )


def finance_faces(
    config: Config, database: Database, pen: AuditPen, clock: SystemClock, renderer: Renderer, stack: AsyncExitStack
) -> list[Face]:
    """Every face of finance, each with its pages and its JSON; what runs behind them ends with `stack`."""
    reach = Reach(ApprovalStore(database).departments)
    today = TodayPage(TodayStore(database), reach, city_of(config), clock)
    imports = imports_of(config, database, pen, clock)
    stack.push_async_callback((jobs := Jobs(imports)).end)
    search = ChargeSearch(ChargeStore(database), reach, city_of(config))
    looks = Looks(ApprovalStore(database), pen, clock)
    clear_scratch()
    exports = Exports(ExportStore(database), BookStore(database), reach, looks, city_of(config))
    trail = AuditTrail(AuditTrailStore(database), reach, looks, city_of(config))
    return [
        AuditFace(trail, renderer),
        ChargesFace(search, renderer),
        ExportsFace(exports, renderer),
        ClosesFace(closes_of(config, database, pen, clock), renderer),
        ExceptionsFace(exceptions_of(config, database, pen, clock), renderer),
        ImportsFace(imports, jobs, renderer),
        ReconciliationsFace(reconciliations_of(config, database, pen, clock), renderer),
        TodayFace(today, renderer),
    ]
