"""`jevomerge push`: put a merged model on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from jevomerge.checkpoint.bom import BOM, licences_of
from jevomerge.checkpoint.files import expanded, read_json
from jevomerge.checkpoint.licences import obstacles
from jevomerge.errors import InputError
from jevomerge.observers.observer import SILENT, Observer
from jevomerge.search.records import read_outcome


def push(
    run: str | Path, name: str, *, private: bool = False, accept_licence: bool = False, observer: Observer = SILENT
) -> str:
    """Upload RUN/best, or a folder that was merged, as a new repository.

    Args:
        run: the folder of a finished run, or a model folder that was written here.
        name: owner/name; there must be nothing in it.
        private: nobody else sees it.
        accept_licence: although the sources' licences ask for what this does not do.
        observer: is told what goes on.

    Returns:
        its address.

    Raises:
        InputError: for licences that do not allow it, without a token, and for a name that is taken.
    """
    folder = folder_of(expanded(run))
    if name.count("/") != 1:
        raise InputError(f"{name}: the hub's names are OWNER/NAME")
    licences = licences_of(read_json(folder / BOM))
    if (found := obstacles(licences, name)) and not accept_licence:
        raise InputError(
            f"{folder}: {'; '.join(found)}. Read these licences, and if you may publish it all the same, say "
            "--accept-licence"
        )
    unknown = [source for source, licence in licences.items() if licence is None]
    if unknown:
        observer.note(f"nobody states the licence of {', '.join(unknown)}; find out before others use what you publish")
    return upload(folder, name, private, observer)


def folder_of(run: Path) -> Path:
    """The model that a folder is, or has as its outcome."""
    folder = run
    if (run / "config.yaml").exists():
        if (outcome := read_outcome(run)) is None:
            raise InputError(f"{run} is not finished; continue it with `jevomerge evolve --resume {run}`")
        folder = run / str(outcome["export"])
    if not (folder / BOM).exists():
        remedy = (
            f"`jevomerge card {run}` writes it" if folder != run else "give a run, or a folder that was merged here"
        )
        raise InputError(f"{folder} has no {BOM}, which says under which licences its sources are; {remedy}")
    return folder


def upload(folder: Path, name: str, private: bool, observer: Observer) -> str:
    """The same, licences being looked at."""
    from huggingface_hub import HfApi  # imported late: nothing else writes to the hub
    from huggingface_hub.errors import HfHubHTTPError

    api = HfApi()
    try:
        observer.stage(f"making {name}")
        address = str(api.create_repo(name, private=private, exist_ok=True))
        if taken := [file for file in api.list_repo_files(name) if file != ".gitattributes"]:
            raise InputError(f"{name} has {taken[0]} already and is not overwritten; choose another name")
        observer.stage(f"uploading {folder}")
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Merged with jevomerge")
    except HfHubHTTPError as error:
        status, said = error.response.status_code, str(error.server_message or error).splitlines()[0]
        remedy = {
            401: "log in with `hf auth login`, or set HF_TOKEN",
            403: "your token may not write there; use one that may",
        }.get(status, "try again, nothing is lost")
        raise InputError(f"{name}: the hub answered {status} ({said}); {remedy}") from error
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"{name}: uploading failed ({type(error).__name__}: {error}); try again, nothing is lost"
        ) from error
    return address
