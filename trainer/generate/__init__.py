"""What a finished run makes by itself: text, images and text again, for prompts of a file or held-out records (docs/generation.md).

    generator   prompts in, what the model makes of them out, through one cache; `row`, `prompt`, `draws` and `rollout` are its parts
    stage       `pipelines run generate`: a recipe in, a folder of lines and pictures out; `asked`, `lines`, `files` and `check` are its parts
"""
