"""Everything that can go wrong with keys, as one tree.

    KeysError
    |- BrokenSeal               a sealed byte string does not open here
    |  |- UnknownFormat         its version byte or length is not one that we write
    |  `- WrongKey              its commitment belongs to another key or another place
    |- KeyRefused               the key exists, but its state or its dates forbid this use
    |- UnknownKey               no such key in the ring
    |- KeysExhausted            the active generation has wrapped as often as it may
    |- RootRefused              the root key cannot be opened
    |  `- RootUnavailable       what holds it does not answer now; trying again may help
    |- KeystoreRefused          the key store's files are not as they must be
    |- ManifestRefused          the manifest is forged, older than one seen, or of another environment
    |- SettingsRefused          a value in the configuration is doubtful
    `- DatabaseRefused          the database is unreachable, or set up so that it may lose data

Messages name no secret and end, where a person can act, with what to do.
"""


class KeysError(Exception):
    """Any refusal by the keys package. The message is safe to show and to log."""


class BrokenSeal(KeysError):
    """A sealed byte string was altered, or stands where it was not sealed."""


class UnknownFormat(BrokenSeal):
    """The version byte or the length is not one that this release writes or reads."""


class WrongKey(BrokenSeal):
    """The key commitment does not match: another key, or another place."""


class KeyRefused(KeysError):
    """The key's state or dates do not allow this use."""


class UnknownKey(KeysError):
    """The ring holds no such key."""


class KeysExhausted(KeysError):
    """The active generation reached its limit of wraps: rotate it with `keys rotate`."""


class RootRefused(KeysError):
    """The root key cannot be opened with what was given."""


class RootUnavailable(RootRefused):
    """The HSM, the cloud service or the unlocked root is not there now; it may be later."""


class KeystoreRefused(KeysError):
    """A file of the key store is missing, or others could read or replace it."""


class ManifestRefused(KeysError):
    """The manifest is not authentic, not current, or not of this environment."""


class SettingsRefused(KeysError):
    """A configuration value is missing or doubtful; the message names it, its place and what is allowed."""


class DatabaseRefused(KeysError):
    """The database cannot be used as it is; the message never quotes the driver's."""
