"""Store stage: record batches and receipts in, one fragment a shard and one commit a build out."""

from typing import TYPE_CHECKING

from lance_prep.process import lazy_exports

if TYPE_CHECKING:
    from lance_prep.store.arrays import ArrayHeap, read_arrays, write_arrays
    from lance_prep.store.cache import Cache, Stat, damaged_files, user_folder
    from lance_prep.store.content_hash import ShardHash, combine
    from lance_prep.store.journal import (
        COMMITTED,
        MOST_NAMES,
        Journal,
        asked,
        build_key,
        read_committed,
        receipt_paths,
        receipts_of,
        recipe_as_json,
        unfinished_builds,
    )
    from lance_prep.store.jsonl_index import (
        SCHEMA as INDEX_SCHEMA,
    )
    from lance_prep.store.jsonl_index import (
        IndexedFile,
        IndexPlace,
        JsonlIndex,
        open_index,
        open_unchanged,
        write_index,
    )
    from lance_prep.store.leftovers import check_data, with_data
    from lance_prep.store.lock import OutputLock
    from lance_prep.store.manifest import MANIFEST, Manifest, Split, parse_manifest, read_manifest, split_of
    from lance_prep.store.metadata import (
        BUILDS_FOLDER,
        EXPORT_KEY,
        FOLDER,
        IGNORE,
        KEY,
        BuildRecord,
        ChatRecord,
        FileRecord,
        Lengths,
        Metadata,
        SourceRecord,
        TokenizerRecord,
        decode,
        versions_in_use,
        with_metadata,
    )
    from lance_prep.store.output import VERSION_HINT, Output
    from lance_prep.store.pages import FlatPages, NotFlat, find_flat_pages
    from lance_prep.store.quarantine import (
        QUARANTINE_NOTE,
        Quarantine,
        default_path,
        publish,
        published,
        read_quarantine_note,
    )
    from lance_prep.store.receipt import Receipt
    from lance_prep.store.seal import (
        data_hashes,
        hash_bytes,
        hash_files,
        manifest_path,
        manifest_versions,
        read_seal,
        seal_path,
        transactions_in,
    )
    from lance_prep.store.sidecar import TEMPORARY, Files, LocalFiles, hash_file, make_durable, natural, refuse_links
    from lance_prep.store.stores import Store, files_of, output_lock, register_store
    from lance_prep.store.version import (
        LOADER,
        LOADER_FILE,
        DatasetVersion,
        list_path,
        open_any,
        open_at,
        open_version,
        opened,
        portable_url,
        read_by_hash,
        resolved_recipe,
        tokenizer_path,
        version_numbers,
        write_by_hash,
        write_list,
    )

__getattr__, __dir__, __all__ = lazy_exports(__name__)
