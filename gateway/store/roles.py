"""The database's roles, as statements that its superuser runs once. No password stands in them in clear.

PostgreSQL takes a SCRAM-SHA-256 verifier (RFC 5803) in place of a password, so neither its log nor whoever
reads the statements learns one.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Mapping

from keys.queries import load_queries
from keys.secret import Secret

PROCESSES = ("owner", "api", "admin", "worker", "reseal", "keys")
ITERATIONS = 4096
SALT_BYTES = 16


def statements(passwords: Mapping[str, Secret[str]], database: str) -> str:
    """Create the roles if need be, give them these passwords, and close the database to everyone else."""
    parts = [load_queries("gateway.store", "roles.sql").create_roles]
    for process in PROCESSES:
        role = f"gateway_{process}"
        parts.append(f"ALTER ROLE {role} PASSWORD '{scram_verifier(passwords[process])}';")
        parts.append(f'GRANT CONNECT ON DATABASE "{database}" TO {role};')
    parts += [
        f'REVOKE ALL ON DATABASE "{database}" FROM PUBLIC;',
        f'ALTER DATABASE "{database}" OWNER TO gateway_owner;',
        "REVOKE ALL ON SCHEMA public FROM PUBLIC;",
    ]
    return "\n".join(parts) + "\n"


def scram_verifier(password: Secret[str]) -> str:
    """What PostgreSQL stores of a password: `SCRAM-SHA-256$<iterations>:<salt>$<stored key>:<server key>`."""
    salt = secrets.token_bytes(SALT_BYTES)
    salted = hashlib.pbkdf2_hmac("sha256", password.reveal().encode(), salt, ITERATIONS)
    client = hmac.digest(salted, b"Client Key", "sha256")
    server = hmac.digest(salted, b"Server Key", "sha256")
    stored = hashlib.sha256(client).digest()
    encode = base64.b64encode
    return f"SCRAM-SHA-256${ITERATIONS}:{encode(salt).decode()}${encode(stored).decode()}:{encode(server).decode()}"
