"""Who may ask: the token, which is used and never shown, and what to do about a refusal."""

from __future__ import annotations

import re
from urllib.parse import quote

from microns_xr.errors import SchemaError

__all__ = ["TOKEN_HELP", "Secret", "refusal_advice"]

TOKEN_HELP = (
    "get a token at https://global.daf-apis.com/auth/api/v1/create_token and pass it as "
    "auth_token=..., or keep it where caveclient looks for it, once, with "
    "caveclient.CAVEclient().auth.save_token(token=...)"
)


class Secret:
    """A token, or none, that no repr, no traceback and no pickle shows.

    Parameters
    ----------
    value : str, optional
        The token; spaces around it are taken off.

    Raises
    ------
    SchemaError
        If it is empty or holds signs that no token has; they would break the request's header.

    Examples
    --------
    >>> secret = Secret("0123abcd")
    >>> secret, secret.clean("Invalid token: 0123abcd")
    (<token>, 'Invalid token: <token>')
    """

    __slots__ = ("value",)

    def __init__(self, value: str | None = None) -> None:
        if value is not None:
            value = str(value).strip()
            if not re.fullmatch(r"[!-~]+", value):
                raise SchemaError(f"auth_token is empty or holds spaces or signs: {TOKEN_HELP}")
        self.value = value

    def __repr__(self) -> str:
        return "<token>" if self.value else "<no token>"

    def __reduce__(self) -> tuple[type[Secret], tuple[()]]:
        return Secret, ()

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __copy__(self) -> Secret:
        return self

    def clean(self, text: str) -> str:
        """Take the token out of a text, however it is written there."""
        if self.value:
            for form in {self.value, repr(self.value)[1:-1], quote(self.value, safe="")}:
                text = text.replace(form, "<token>")
        return text


def refusal_advice(datastack: str, version: int) -> dict[int, str]:
    """Return what to do about each status that the CAVE service refuses with.

    Parameters
    ----------
    datastack : str
        Name of the datastack.
    version : int
        Materialization version.

    Returns
    -------
    dict of int to str
        By HTTP status.

    Examples
    --------
    >>> refusal_advice("minnie65_public", 661)[410]
    "minnie65_public v661 has left the service and is archived as files: use source='archive', ..."
    """
    return {
        400: "check the names of tables and columns",
        401: TOKEN_HELP,
        403: f"the token may not read {datastack}: accept its terms of service, or {TOKEN_HELP}",
        404: "the service has no such datastack, version or table: see mx.supported_versions() "
        "and available_tables()",
        410: f"{datastack} v{version} has left the service and is archived as files: use "
        f"source='archive', as in mx.Release({version}, source='archive')",
        413: "ask for fewer ids at once",
    }
