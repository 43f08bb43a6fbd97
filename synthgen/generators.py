"""A model as a table `[[models]]` names it, with what is added to it: found, identified, loaded."""

import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from synthgen import licenses, shards
from synthgen.errors import ModelError
from synthgen.recipe import where
from synthgen.tables.models import AdapterTable, LoraTable, ModelTable, UpscalerTable

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from synthgen.generation.memory import Need
    from synthgen.generation.options import Options

OPTIONS = ("embedding_cache", "vae_slicing", "channels_last", "compile")
"""Keys of a model that decide how it is run, and with that the last bits of its images."""
log = logging.getLogger(__name__)


class Generator:
    """One model of a recipe.

    Args:
        recipe: the recipe's file, to whose folder paths are relative.
        fetch: whether it may be downloaded.
        offload: "model" or "sequential" keeps weights off the device while they are not used; "" does not.
    """

    def __init__(self, table: ModelTable, recipe: Path, *, fetch: bool, offload: str) -> None:
        self.table, self._recipe, self._fetch, self._offload = table, recipe, fetch, offload

    @property
    def source(self) -> str:
        """What it is looked up by; the plan pins what was found."""
        about = {"path", "revision", "variant", "scheduler", "loras", "upscaler", "adapter"}
        return shards.digest(self.table.model_dump(include=about))

    def where(self, key: str = "") -> contextlib.AbstractContextManager[None]:
        """Puts the recipe's file and the model's key before the message of a bad input."""
        return where(self._recipe, f"models.{self.table.id}{key}")

    def identify(self) -> tuple[str, str, str]:
        """Fingerprint, scheduler and terms; of a model that is not here, and may not be fetched, "", what the
        recipe says, and "unknown".

        Raises:
            ModelError: there is no such model, or it cannot make what the recipe asks.
        """
        from synthgen.generation import checkpoints, conditioning, models, options, schedulers

        table = self.table
        paths = [table.path, *(lora.path for lora in table.loras)]
        paths += [table.adapter.path] if table.adapter else []
        try:
            folder, added = self.locate(), self._added()
        except ModelError:
            if self._fetch or not any(map(licenses.HUB_ID.match, paths)):
                raise
            return "", table.scheduler, licenses.UNKNOWN  # who only looks does not need it
        with self.where():
            size = {"width": table.width, "height": table.height}
            checkpoints.check(
                folder,
                variant=table.variant,
                guidance=table.guidance,
                steps=table.steps,
                negative=table.negative,
                call=table.call,
                strength=table.strength or 0.0,
                **size,
            )
            if table.adapter:
                conditioning.check_adapter(checkpoints.pipeline_class(folder))
            if table.strength == 1:
                log.warning("models.%s: strength = 1: nothing of the real images is left", table.id)
            if table.upscaler:
                second = added["upscaler"].folder
                checkpoints.check_upscaler(folder, second, call=table.upscaler.call, **size)
            options.check(folder, self._options())
            scheduler = schedulers.scheduler_name(folder, table.scheduler)
            fingerprint = models.fingerprint(folder, variant=table.variant, **added)
        return fingerprint, scheduler, self.card_license(folder, fetch=self._fetch)

    def card_license(self, here: Path | None = None, *, fetch: bool) -> str:
        """The terms of a model, and of what is added to it, by their cards; that of the model is in `here` if
        its files are.
        """
        table = self.table
        parts: list[ModelTable | LoraTable | UpscalerTable | AdapterTable] = [table, *table.loras]
        parts += [part for part in (table.upscaler, table.adapter) if part]
        told = [
            licenses.model_license(
                part.path,
                folder=self._recipe.parent,
                revision=part.revision,
                here=here if part is table else None,
                fetch=fetch,
            )
            for part in parts
        ]
        return ", ".join(dict.fromkeys(name for terms in told for name in terms.split(", ")))

    def locate(self) -> Path:
        """The local folder of a model."""
        with self.where():
            return self._locate(self.table)

    def locate_upscaler(self) -> Path | None:
        """The local folder of a model's second stage; None where it has none."""
        with self.where(".upscaler"):
            return self._locate(self.table.upscaler) if self.table.upscaler else None

    def _locate(self, table: ModelTable | UpscalerTable) -> Path:
        from synthgen.generation import locating, models

        return locating.locate(
            table.path,
            folder=self._recipe.parent,
            revision=table.revision,
            variant=table.variant,
            fetch=self._fetch,
            without=models.ENCODER if isinstance(table, UpscalerTable) else (),
        )

    def _added(self) -> dict[str, Any]:
        """What is added to a model: LoRAs, a second stage, an IP-Adapter."""
        from synthgen.generation import locating

        table = self.table
        place: dict[str, Any] = {"folder": self._recipe.parent, "fetch": self._fetch}
        with self.where():
            loras = [
                locating.Lora(
                    locating.locate_lora(lora.path, file=lora.file, revision=lora.revision, **place),
                    lora.weight,
                )
                for lora in table.loras
            ]
            adapter = (
                locating.locate_adapter(**table.adapter.model_dump(), **place) if table.adapter else None
            )
        with self.where(".upscaler"):
            second = table.upscaler
            upscaler = locating.Upscaler(self._locate(second), second.variant) if second else None
        return {"loras": loras, "upscaler": upscaler, "adapter": adapter}

    def image_size(self) -> tuple[int, int]:
        """Width and height of a model's images: the recipe's, else a guess from its configurations."""
        from synthgen.generation.checkpoints import own_size

        if self.table.width:
            return self.table.width, self.table.height
        try:
            return own_size(self.locate())
        except ModelError:  # who only looks may not have it
            return 1024, 1024

    def load(self, device: str, *, fingerprint: str) -> "DiffusionPipeline":
        """The pipeline, on its device; `fingerprint` is what the plan is for.

        Raises:
            ModelError: it has another fingerprint, or cannot be loaded, or does not fit.
        """
        from synthgen.generation import models

        table, folder, added = self.table, self.locate(), self._added()
        found = models.fingerprint(folder, variant=table.variant, **added)
        if found != fingerprint:
            raise ModelError(
                f"models.{table.id}: the weights in {folder} have the fingerprint {found}, the plan is for "
                f"{fingerprint}; put those weights back, or use another folder with -o DIR"
            )
        if self._offload and device == "cpu":
            raise ModelError(f"--offload {self._offload}: there is no GPU to offload from; leave it out")
        if warning := self.doubt(device):
            log.warning("%s", warning)
        return models.load(
            folder,
            device=device,
            dtype=table.dtype,
            scheduler=table.scheduler,
            variant=table.variant,
            safety_checker=table.safety_checker,
            **added,
            changes=bool(table.strength),
            options=self._options(),
        )

    def _options(self) -> "Options":
        from synthgen.generation.options import Options

        return Options(**{key: getattr(self.table, key) for key in OPTIONS}, offload=self._offload)

    def need(self) -> "Need":
        """The memory that a model needs."""
        from synthgen.generation import memory

        table, folder, upscaler = self.table, self.locate(), self._added()["upscaler"]
        with self.where():
            return memory.need(
                folder,
                variant=table.variant,
                safety_checker=table.safety_checker,
                upscaler=upscaler,
                width=table.width,
                height=table.height,
            )

    def doubt(self, device: str) -> str:
        """What to say of a model that may not fit on the device with its images; "" where it does.

        Raises:
            ModelError: its weights alone do not fit.
        """
        from synthgen.generation import memory

        table, free = self.table, memory.free_bytes(device)
        if free is None:
            return ""
        setup = memory.Setup(
            table.dtype, table.batch_size, table.embedding_cache, table.vae_slicing, self._offload
        )
        return memory.check(self.need(), setup, free=free, model=table.id, device=device)
