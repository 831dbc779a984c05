"""The start page, and the same as JSON: today at a glance for who works with the ledger, for others their account."""

from datetime import date
from typing import Any, ClassVar

from aiohttp import web

from gateway.rules.staff import Permission
from gateway.services.today import AGES, CURRENCY, DaySum, Glance, TodayPage
from gateway.web.answer import answer
from gateway.web.gate import STAFF, StaffRoute
from gateway.web.plots import stacks
from gateway.web.renderer import Renderer, may


class TodayFace:
    """The handlers of `/` and `/admin/v1/today`."""

    routes: ClassVar = (
        StaffRoute("GET", "/", "home", Permission.HOME),
        StaffRoute("GET", "/admin/v1/today", "today", Permission.LEDGER_READ),
    )

    def __init__(self, today: TodayPage, renderer: Renderer) -> None:
        self._today = today
        self._page = renderer.page

    async def home(self, request: web.Request) -> web.Response:
        """`GET /`."""
        if not may(request[STAFF], Permission.LEDGER_READ):
            return self._page(request, "home.html")
        glance = await self._today.glance(request[STAFF])
        plot = stacks(glance.departments, glance.days, glance.taken_minor)
        return self._page(request, "today.html", glance=glance, plot=plot, ages=AGES, currency=CURRENCY)

    async def today(self, request: web.Request) -> web.Response:
        """`GET /admin/v1/today`."""
        return answer(_object(await self._today.glance(request[STAFF])))


def _object(glance: Glance) -> dict[str, Any]:
    """Amounts in minor units, days as ISO dates."""
    seen = glance.seen
    return {
        "object": "today",
        "date": glance.day.isoformat(),
        "currency": CURRENCY,
        "today": _day(glance.today),
        "yesterday": _day(glance.yesterday),
        "in_review": seen.waiting.in_review,
        "unmatched": glance.unmatched,
        "timing": glance.in_transit,
        "ageing": [
            {"age": age, "exceptions": count, "difference": difference}
            for age, (count, difference) in zip(("0-1", "2-5", "6-10", "11-"), glance.ageing, strict=True)
        ],
        "awaiting_deposit": seen.run.awaiting_deposit_minor if seen.run else None,
        "waiting": {
            "refunds": seen.waiting.refunds,
            "exceptions": seen.waiting.exceptions,
            "closes": seen.waiting.closes,
        },
        "last_close": _iso(seen.close.to_date if seen.close else None),
        "taken": [
            {
                "date": one.day.isoformat(),
                "department": one.department,
                "taken": one.taken_minor,
                "refunded": one.refunded_minor,
            }
            for one in sorted(seen.taken, key=lambda one: (one.day, one.department))
        ],
    }


def _day(day: DaySum) -> dict[str, int]:
    return {
        "taken": day.taken_minor,
        "taken_count": day.taken,
        "refunded": day.refunded_minor,
        "refunded_count": day.refunded,
        "declined_count": day.declined,
    }


def _iso(day: date | None) -> str | None:
    return day.isoformat() if day else None
