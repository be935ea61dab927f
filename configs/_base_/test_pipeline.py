# As in the published protocol: read and resized by PIL, short edge 1024, long edge at most 2560.
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
            # what metrics read ground truth from, where a dataset has it
            "seg_map_path",
            "segments_info",
            "sem_seg_path",
            "reduce_zero_label",
            "caption",  # for captioners that use it, where a dataset has it
        ),
    ),
]
