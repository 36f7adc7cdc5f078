"""Collection stage: a recipe of recipes in; raw text by category, or a dataset for each source and a manifest out."""

from typing import TYPE_CHECKING

from lance_prep.process import lazy_exports

if TYPE_CHECKING:
    from lance_prep.collection.build_many import build_collection, run_collection
    from lance_prep.collection.catalog import CatalogEntry, collection_schema, list_recipes, recipe_text
    from lance_prep.collection.check_download import CheckedFile, DownloadCheck, check_download, samples
    from lance_prep.collection.download import DownloadReport, Outcome, download
    from lance_prep.collection.fetch_text import DownloadProgress
    from lance_prep.collection.folder import Download, DownloadedSource, SourceStats, is_text_folder, read_download
    from lance_prep.collection.load import Collection, is_collection, load_collection
    from lance_prep.collection.model import Category, CollectionRecipe, CollectionSource
    from lance_prep.collection.preview import CollectionPreview, SourcePreview, preview_collection
    from lance_prep.collection.report import (
        CollectionProgress,
        CollectionReport,
        SourceReport,
        Unlisted,
    )
    from lance_prep.collection.sources import CollectionPlan, SourceJob, is_download, open_collection
    from lance_prep.collection.status import CollectionStatus, SourceStatus, collection_status

__getattr__, __dir__, __all__ = lazy_exports(__name__)
