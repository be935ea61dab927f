# The published protocol: PIL reads and resizes images to a short edge of 1024 pixels, with a long
# edge of at most 2560.
test_pipeline = [
    dict(type="LoadImage"),
    dict(type="ResizeKeepRatio", scale=(2560, 1024)),
    dict(
        type="mmdet.PackDetInputs",
        meta_keys=(
            "img_id",
            "img_path",
            "ori_shape",
            "img_shape",
            "scale_factor",
            # for metrics, if the dataset has this ground truth
            "seg_map_path",
            "segments_info",
            "sem_seg_path",
            "reduce_zero_label",
            "caption",  # for captioners that use it, if the dataset has captions
        ),
    ),
]
