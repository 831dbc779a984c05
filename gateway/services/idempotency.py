"""The same key with the same request gets the same answer; with another request, a refusal."""

import hmac

from gateway.errors import IdempotencyKeyReused
from gateway.rules.card import Card
from gateway.services.ports import Answer, Claim, Claimed
from gateway.services.vault import Vault


async def earlier_answer(
    vault: Vault, department: str, claim: Claim, earlier: Claimed, card: Card | None
) -> Answer | None:
    """The answer that is stored under the key, None when the first request has not ended.

    Raises `IdempotencyKeyReused` unless this request is the one that the key was first used for. A card part
    that an erasure cleared is not compared; one made under an older fingerprint key is compared under that key.
    When that key is destroyed nobody can compare any more. `reseal` has rewritten or cleared every part that it
    found before that, so what is left counts as cleared, too: the worst is that a caller who reuses a key with
    another card is shown the first answer, while a refusal would never end for those who repeat honestly.
    """
    same = hmac.compare_digest(claim.request_digest, earlier.request_digest)
    if same and card is not None and earlier.card_part is not None:
        mine = await vault.card_part_again(department, card, earlier.card_part.key_version)
        same = mine is None or hmac.compare_digest(mine.value, earlier.card_part.value)
    if not same:
        raise IdempotencyKeyReused
    if earlier.status is None or earlier.body is None:
        return None
    return Answer(earlier.status, earlier.body)
