"""`p2p download`: the released weights and the public dataset from the Hub."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from p2p.hub.model import download_model
from p2p.hub.transfer import Downloads, Repository

logger = logging.getLogger(__name__)

MODEL_REPOSITORY = "elefantai/open-p2p"
DATASET_REPOSITORY = "elefantai/p2p-full-data"
TOY_REPOSITORY = "elefantai/p2p-toy-examples"
SIZES = ("150M", "300M", "600M", "1200M")


def _run_model(args: argparse.Namespace) -> int:
    checkpoint, config = download_model(Repository(args.repo, "model", args.revision), args.size, args.output)
    if args.import_policy:
        from p2p.model.original import import_checkpoint

        logger.info("policy: %s", import_checkpoint(checkpoint, checkpoint.parent / "policy", config))
    return 0


def _run_data(args: argparse.Namespace) -> int:
    from p2p.hub.dataset import Selection, download_archives, download_toy

    whole_range = args.start is None and args.end is None
    if args.toy and not (whole_range and args.game is None and not args.archives):
        raise ValueError("--toy is a set of its own; leave --start, --end, --game and --archives out")
    if not args.toy and whole_range and args.game is None:
        raise ValueError("the whole dataset is many terabytes; choose with --toy, --start N --end M, or --game NAME")
    selection = Selection(args.start, args.end, args.game, args.raw_video, args.archives)
    repo_id = args.repo or (TOY_REPOSITORY if args.toy else DATASET_REPOSITORY)
    with Downloads(Repository(repo_id, "dataset", args.revision), args.output) as downloads:
        count = (download_toy if args.toy else download_archives)(downloads, selection)
    logger.info("%d %s in %s", count, "archives" if args.archives else "recordings", args.output)
    return 0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`p2p download model SIZE` and `p2p download data ...`."""
    what = parser.add_subparsers(dest="what", required=True, metavar="model|data")
    model = what.add_parser("model", help="released weights")
    model.add_argument("size", choices=SIZES)
    model.add_argument("--output", type=Path, default=Path("models"), help="folder (default: %(default)s)")
    model.add_argument("--import", dest="import_policy", action="store_true", help="and make a policy folder of it")
    model.add_argument("--repo", default=MODEL_REPOSITORY, help="OWNER/NAME (default: %(default)s)")
    model.add_argument("--revision", help="branch, tag or commit (default: main)")
    model.set_defaults(run_download=_run_model)
    data = what.add_parser("data", help="recordings of the public dataset")
    data.add_argument("--output", type=Path, required=True, help="folder that receives the recordings")
    data.add_argument("--toy", action="store_true", help="the three example recordings, about 1 GB")
    data.add_argument("--start", type=int, metavar="N", help="first archive, counted from 1")
    data.add_argument("--end", type=int, metavar="M", help="last archive, included")
    data.add_argument("--game", metavar="NAME", help="only recordings of this game, from the archives that hold some")
    data.add_argument("--raw-video", action="store_true", help="keep video.mp4 too (nine tenths of the bytes)")
    data.add_argument("--archives", action="store_true", help="keep the .tar.gz files; p2p-convert reads them as well")
    data.add_argument("--repo", help=f"OWNER/NAME (default: {DATASET_REPOSITORY}, with --toy {TOY_REPOSITORY})")
    data.add_argument("--revision", help="branch, tag or commit (default: main)")
    data.set_defaults(run_download=_run_data)


def run(args: argparse.Namespace) -> int:
    """Download; 0 when everything is there and its hashes are right."""
    status: int = args.run_download(args)
    return status
