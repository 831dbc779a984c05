"""The same key with the same request gets the same answer; with another request, a refusal."""

import hmac

from gateway.errors import IdempotencyKeyReused, RequestInProgress
from gateway.rules.card import Card
from gateway.rules.lifecycle import UNDECIDED
from gateway.services.answers import movement_answer
from gateway.services.ports import Answer, ChargeStore, Claim, Claimed
from gateway.services.vault import Vault


def require_same_request(claim: Claim, earlier: Claimed) -> None:
    """Raises `IdempotencyKeyReused` unless the key was first used for this request, cards aside."""
    if not hmac.compare_digest(claim.request_digest, earlier.request_digest):
        raise IdempotencyKeyReused


async def require_same_card(vault: Vault, department: str, card: Card, earlier: Claimed) -> None:
    """Raises `IdempotencyKeyReused` unless the key was first used with this card.

    A card part that an erasure cleared is not compared; one made under an older fingerprint key is compared under
    that key. When that key is destroyed nobody can compare any more. `reseal` has rewritten or cleared every part
    that it found before that, so what is left counts as cleared, too: the worst is that a caller who reuses a key
    with another card is shown the first answer, while a refusal would never end for those who repeat honestly.
    """
    if earlier.card_part is None:
        return
    mine = await vault.card_part_again(department, card, earlier.card_part.key_version)
    if mine is not None and not hmac.compare_digest(mine.value, earlier.card_part.value):
        raise IdempotencyKeyReused


def stored_answer(earlier: Claimed) -> Answer | None:
    """The answer that stands under the key, None when the first request has not ended."""
    if earlier.status is None or earlier.body is None:
        return None
    return Answer(earlier.status, earlier.body)


async def answer_again(
    store: ChargeStore, department: str, claim: Claim, earlier: Claimed, movement_id: str
) -> Answer:
    """The answer about a movement that was asked for under this key before, by the same request.

    The final one, byte for byte, once there is one; until then 202 with what is true now. Raises
    `RequestInProgress` while the first request may still be at work.
    """
    answer = stored_answer(earlier)
    if answer is not None:
        return answer
    charge, movement = await store.movement(department, movement_id)
    if movement.running:
        raise RequestInProgress
    if movement.progress in UNDECIDED:
        return movement_answer(charge, movement)
    # It ended between the two looks: its answer stands there by now, and is never rendered a second time.
    ended = await store.claimed(department, claim.route, claim.key)
    answer = stored_answer(ended) if ended else None
    assert answer is not None, "internal error: a movement that ended has its answer"
    return answer
