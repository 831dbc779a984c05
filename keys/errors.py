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
    |  |- KeySwapped            a wrapped key was altered, or another stands in its place
    |  |- KeyMissing            a wrapped key that the manifest names is not there
    |  `- KeyForeign            a key lies there that the manifest does not name
    |- ManifestRefused          the manifest cannot be trusted
    |  |- ManifestForged        it is not signed by this key store's own key
    |  |- ManifestForeign       it is of another environment
    |  |- ManifestRolledBack    it is older than one that was seen
    |  `- ClockBehind           this machine's clock is behind it
    |- PassphraseRefused        a file under a passphrase does not open, or the passphrase is too short
    |- OfficerRefused           no such officer, removed, or without a current acknowledgement
    |- ActRefused               an act for two is not asked for and approved as it must be
    |- BackupRefused            a key backup was altered, or is not for this officer
    |- SettingsRefused          a value in the configuration is doubtful
    |- UndeclaredCommand        a command does not say on whose behalf it acts
    `- DatabaseRefused          the database is unreachable, or set up so that it may lose data

Messages name no secret and end, where a person can act, with what to do.
"""


class KeysError(Exception):
    """Any refusal by the keys package. The message is safe to show and to log.

    `event` names the audit event of a refusal that may be an attack; None where the refusal is ordinary.
    """

    event: str | None = None


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

    event: str | None = "root.refused"


class RootUnavailable(RootRefused):
    """The HSM, the cloud service or the unlocked root is not there now; it may be later."""

    event = None


class KeystoreRefused(KeysError):
    """A file of the key store is missing, or others could read or replace it."""


class KeySwapped(KeystoreRefused):
    """A wrapped key was altered, or is not the one that the manifest names."""

    event = "key.swapped"


class KeyMissing(KeystoreRefused):
    """A wrapped key that the manifest names is gone."""

    event = "key.missing"


class KeyForeign(KeystoreRefused):
    """A wrapped key that the manifest does not name."""

    event = "key.foreign"


class ManifestRefused(KeysError):
    """The manifest is not authentic, not current, or not of this environment."""


class ManifestForged(ManifestRefused):
    """The signature is not that of this key store's own key."""

    event = "manifest.forged"


class ManifestForeign(ManifestRefused):
    """The manifest is of another environment."""

    event = "manifest.foreign"


class ManifestRolledBack(ManifestRefused):
    """An older manifest was put back."""

    event = "manifest.rolled_back"


class ClockBehind(ManifestRefused):
    """This machine's clock is behind the manifest, so that no date can be enforced."""

    event = "clock.behind"


class PassphraseRefused(KeysError):
    """A file under a passphrase does not open with this one, or the passphrase may not protect anything."""


class OfficerRefused(KeysError):
    """The officer is unknown, was removed, or has not acknowledged the duties within a year."""

    event = "officer.refused"


class ActRefused(KeysError):
    """An act for two is not asked for by one officer and approved by another, in time and word for word."""

    event = "act.refused"


class BackupRefused(KeysError):
    """The container of a key backup was altered or cut short, or is sealed to others."""


class SettingsRefused(KeysError):
    """A configuration value is missing or doubtful; the message names it, its place and what is allowed."""


class UndeclaredCommand(KeysError):
    """A command of ours does not say on whose behalf it acts: a mistake of ours, before anything is done."""


class DatabaseRefused(KeysError):
    """The database cannot be used as it is; the message never quotes the driver's."""
