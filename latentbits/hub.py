"""Models on a hub, through ``huggingface_hub``: the folders of :mod:`latentbits.sharing` and no pickles.

Its PyTorch mixin is not used, because that can fall back to one. Needs the extra ``hub``
(``pip install '.[hub]'`` in the project's folder).
"""

from pathlib import Path
from typing import Any, Self

from huggingface_hub import ModelHubMixin, snapshot_download

from .runs import load
from .sharing import FILES, check_empty, export


class HubModel(ModelHubMixin, library_name="latentbits"):
    """A trained model that can be pushed to a hub and had from one.

    ``HubModel("runs/mnist-mlp").push_to_hub("NAME/mnist-mlp")``, and elsewhere
    ``HubModel.from_pretrained("NAME/mnist-mlp").model``.

    Arguments:
        path: A run folder, or one that was shared.

    Attributes:
        model: The model, in evaluation mode.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.model = load(self.path)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Write the folder, which must be new or empty; see ``ModelHubMixin.save_pretrained`` for the options.

        Raises:
            RunError: If the folder holds something.
        """
        check_empty(Path(save_directory))
        url: str | None = super().save_pretrained(save_directory, **options)
        return url

    def _save_pretrained(self, save_directory: Path) -> None:
        export(self.path, save_directory)

    @classmethod
    def _from_pretrained(cls, *, model_id: str, **options: Any) -> Self:
        if not Path(model_id).is_dir():
            names = ("revision", "cache_dir", "force_download", "local_files_only", "token")
            chosen: dict[str, Any] = {name: options.get(name) for name in names}
            model_id = snapshot_download(model_id, allow_patterns=list(FILES), **chosen)
        return cls(model_id)
