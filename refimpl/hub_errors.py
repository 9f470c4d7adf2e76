"""What went wrong with a download, told as one of our errors: which file, what happened, and what to do.

`huggingface_hub` and the HTTP library below it raise some twenty classes, which differ between their versions, and
hide what the Hub said behind "not found in the cache".
"""

from __future__ import annotations

from refimpl.errors import InputError, MissingFileError, RefimplError, SaveError, quote

# `reason` of a MissingFileError: what a caller may have to tell apart.
ABSENT = "absent"  # the repository or folder has no such file
NOT_CACHED = "not cached"  # and the Hub was not to be asked
UNREACHABLE = "unreachable"  # the Hub gave no answer, or says itself that it cannot
REFUSED = "refused"  # no such repository or revision, or not for this account
DAMAGED = "damaged"  # what arrived is not what the Hub has
FAILED = "failed"  # anything else

NO_SUCH_FILE = "the repository has no such file at this revision"
NOT_ASKED = "not in the local cache, and the Hub was not asked"
OFFLINE_HINT = "Fetch it once without local_files_only (--offline) and HF_HUB_OFFLINE."

# The Hub says so when it is overloaded or being repaired.
_FOR_A_WHILE = (408, 500, 502, 503, 504)

# Of the system, but nothing about files.
_NETWORK = (ConnectionError, TimeoutError)

_LONGEST = 200

#: What happened, why as one of the words above, and what to do.
_Told = tuple[str, str, str | None]


def explain(error: Exception, where: str, revision: object, token: str | bool | None) -> RefimplError:
    """Our error for one of `hf_hub_download`; `where` is `owner/name/file`.

    Returns: MissingFileError with `reason`, InputError for options that the Hub cannot be asked with, SaveError when
        the system does not let the file be stored.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    inner = _innermost(error)
    # Whether the first question, where the file lies, was answered.
    answered = inner is error
    said = _one_line(inner, token)
    where = where if revision is None else f"{where} (revision {quote(revision)})"
    if isinstance(inner, OfflineModeIsEnabled | LocalEntryNotFoundError):
        if type(error) is ValueError:
            return InputError("what is to be downloaded again cannot be had offline", where=where)
        told: _Told = (NOT_ASKED, NOT_CACHED, OFFLINE_HINT)
    elif (by_the_hub := _said_by_the_hub(inner, answered, said, revision)) is not None:
        told = by_the_hub
    elif isinstance(inner, TypeError | ValueError):  # HFValidationError is one
        return InputError(f"the Hub cannot be asked so: {said}", where=where)
    elif isinstance(inner, OSError) and inner.errno is not None and not isinstance(inner, _NETWORK):
        return SaveError(
            f"the file cannot be stored ({said})",
            where=where,
            hint="Make room, or choose another folder with cache_dir=... or HF_HOME.",
        )
    else:
        told = _on_the_way(inner, answered, said)
    what, reason, hint = told
    return MissingFileError(what, where=where, hint=hint, reason=reason)


def _said_by_the_hub(error: Exception, answered: bool, said: str, revision: object) -> _Told | None:
    """For an answer of the Hub, or of what takes its place; None: this is no answer."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    # A server that is no real Hub has no codes that say what was not found.
    plain_404 = status == 404 and not answered and type(error) is errors.HfHubHTTPError
    if isinstance(error, errors.EntryNotFoundError) or plain_404:
        return NO_SUCH_FILE, ABSENT, None
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the repository has no revision {quote(revision or 'main')}", REFUSED, None
    if isinstance(error, errors.GatedRepoError):
        next_step = (
            ", then pass token=... or set HF_TOKEN" if status == 401 else "; this account has none yet"
        )
        hint = f"Ask for it on the page of the repository{next_step}."
        return "access to this repository must be granted on the Hub first", REFUSED, hint
    if isinstance(error, errors.RepositoryNotFoundError):
        hint = "If it is private, pass token=..., set HF_TOKEN or log in with huggingface_hub."
        return "no such folder, and no such repository on the Hub", REFUSED, hint
    if isinstance(error, errors.FileMetadataError):
        hint = "The login page of a network, a proxy or a wrong HF_ENDPOINT can be why."
        return f"what answered is no Hub ({said})", UNREACHABLE, hint
    if status == 401:
        return "the Hub does not know this token", REFUSED, "Check token=... and HF_TOKEN, or log in again."
    if status == 403:
        return f"the Hub refuses access ({said})", REFUSED, None
    reason = FAILED if answered else UNREACHABLE
    if status == 429:
        return "the Hub has had too many requests from here", reason, "Wait some minutes, or log in."
    if status in _FOR_A_WHILE:
        return f"the Hub is out of order (HTTP status {status})", reason, "Try again later."
    return None if status is None else (f"the download failed ({said})", FAILED, None)


def _on_the_way(error: Exception, answered: bool, said: str) -> _Told:
    """For a connection that could not be made, or broke off, and for what nobody has thought of."""
    # Every HTTP library has classes of its own for that, and all of them say so in the name.
    late = any("Timeout" in kind.__name__ for kind in type(error).__mro__)
    if not answered:
        hint = "Check the connection, proxies and HF_ENDPOINT, or use a folder that holds the model's files."
        if late:
            hint = "Try again; HF_HUB_ETAG_TIMEOUT says how many seconds to wait."
        what = f"the Hub cannot be reached ({said}), and the file is not in the local cache"
        return what, UNREACHABLE, hint
    if "Consistency check failed" in said:
        hint = "Try again. A proxy or the login page of a network can be why, too."
        return f"the download is not complete, and has been thrown away ({said})", DAMAGED, hint
    hint = "Try again; HF_HUB_DOWNLOAD_TIMEOUT says how many seconds to wait." if late else "Try again."
    return f"the download failed ({type(error).__name__}: {said})", FAILED, hint


def _innermost(error: Exception) -> Exception:
    """What the library raised first, where it says only that something else went wrong."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    while isinstance(error, LocalEntryNotFoundError) or type(error) is ValueError:
        if not isinstance(error.__cause__, Exception):
            break
        error = error.__cause__
    return error


def _one_line(error: Exception, token: str | bool | None) -> str:
    """The text of the error, without the token that some libraries quote."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(token, str) and token:
        text = text.replace(token, "<token>")
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
