"""Engine stage: runs the shards of a plan, and commits them."""

from typing import TYPE_CHECKING

from lance_prep.process import lazy_exports

if TYPE_CHECKING:
    from lance_prep.engine.commit import commit_build, existing_report
    from lance_prep.engine.decide import Decision, Existing, check_folder, look_at, refuse_other_recipe
    from lance_prep.engine.estimate import compare_space, free_space
    from lance_prep.engine.executor import ExecutorSetup
    from lance_prep.engine.local import SharedEngine, default_workers
    from lance_prep.engine.preview import preview_build
    from lance_prep.engine.report import BuildPreview, BuildReport, Progress, Silent
    from lance_prep.engine.run import (
        RunOptions,
        build,
        discard_others,
        load_spec,
        recipe_and_function,
        run_build,
        stream,
        validation_uri,
    )
    from lance_prep.engine.schedule import Engine, Schedule, register_engine
    from lance_prep.engine.shard import BuildJob, Built, Hooks, ShardTask, build_shard, keep_shard, make_shard
    from lance_prep.engine.spark import Arrivals, SparkEngine, check_built
    from lance_prep.engine.spark_context import check_installed as check_spark
    from lance_prep.engine.spark_context import reported as spark_failures

__getattr__, __dir__, __all__ = lazy_exports(__name__)
