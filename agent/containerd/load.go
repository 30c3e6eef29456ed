package containerd

import (
	"context"
	"fmt"
	"io"
	"slices"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"redoubt.dev/redoubt/agent/driver"
	"redoubt.dev/redoubt/agent/image"
)

// complete tells whether all blobs of img are still there.
func (d *Driver) complete(ctx context.Context, img containerd.Image) (bool, error) {
	ok, _, _, missing, err := images.Check(ctx, d.client.ContentStore(), img.Target(), img.Platform())
	return ok && len(missing) == 0, err
}

func (d *Driver) carried(ctx context.Context, ref image.Reference, progress driver.Progress) (containerd.Image, error) {
	path, ok := d.cfg.Carried[ref.Name]
	if !ok {
		var have []string
		for name := range d.cfg.Carried {
			have = append(have, name)
		}
		slices.Sort(have)
		return nil, fmt.Errorf("image %s is not carried by this agent; it carries %q: %w", ref.Name, have, driver.ErrImage)
	}
	return d.load1(ctx, ref, path, "", progress)
}

// carriedIsCurrent tells whether img is what the archive holds now.
func (d *Driver) carriedIsCurrent(ref image.Reference, img containerd.Image) bool {
	layout, err := image.OpenLayout(d.cfg.Carried[ref.Name])
	if err != nil {
		return true // what is there is better than nothing
	}
	defer layout.Close()
	desc, _, err := layout.Resolve("", platforms.Default().Match)
	return err != nil || desc.Digest == img.Target().Digest
}

// load1 copies one image of an OCI layout into the daemon, which verifies each
// blob against its digest.
func (d *Driver) load1(ctx context.Context, ref image.Reference, path, tag string, progress driver.Progress) (containerd.Image, error) {
	layout, err := image.OpenLayout(path)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w: %w", ref.Name, err, driver.ErrImage)
	}
	defer layout.Close()
	desc, manifest, err := layout.Resolve(tag, platforms.Default().Match)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w: %w", ref.Name, err, driver.ErrImage)
	}
	if manifest.Config.Size > image.MaxConfig {
		return nil, fmt.Errorf("image %s: a config of %d bytes is larger than the %d that are read: %w", ref.Name, manifest.Config.Size, image.MaxConfig, driver.ErrImage)
	}
	// A lease keeps the blobs from being collected until the image names them.
	ctx, done, err := d.client.WithLease(ctx)
	if err != nil {
		return nil, fmt.Errorf("image %s: %w", ref.Name, err)
	}
	defer func() { _ = done(context.WithoutCancel(ctx)) }()

	children := slices.Concat([]ocispec.Descriptor{manifest.Config}, manifest.Layers)
	var total, copied int64
	for _, c := range children {
		total += c.Size
	}
	for _, c := range children {
		if err := d.copyBlob(ctx, layout, c); err != nil {
			return nil, fmt.Errorf("image %s: %w: %w", ref.Name, err, driver.ErrImage)
		}
		copied += c.Size
		progress("load", copied, total)
	}
	gc := map[string]string{"containerd.io/gc.ref.content.config": manifest.Config.Digest.String()}
	for i, l := range manifest.Layers {
		gc[fmt.Sprintf("containerd.io/gc.ref.content.l.%d", i)] = l.Digest.String()
	}
	if err := d.copyBlob(ctx, layout, desc, content.WithLabels(gc)); err != nil {
		return nil, fmt.Errorf("image %s: %w: %w", ref.Name, err, driver.ErrImage)
	}
	// No annotation of the layout comes along.
	target := ocispec.Descriptor{MediaType: desc.MediaType, Digest: desc.Digest, Size: desc.Size}
	return d.name(ctx, ref.Name, target)
}

func (d *Driver) copyBlob(ctx context.Context, layout *image.LayoutFiles, desc ocispec.Descriptor, opts ...content.Opt) error {
	r, err := layout.Blob(desc.Digest)
	if err != nil {
		return err
	}
	defer r.Close()
	err = content.WriteBlob(ctx, d.client.ContentStore(), "redoubt-"+desc.Digest.String(), io.LimitReader(r, desc.Size+1), desc, opts...)
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("blob %s: %w", desc.Digest, err)
	}
	return nil
}

// name makes or moves an image name.
func (d *Driver) name(ctx context.Context, name string, target ocispec.Descriptor) (containerd.Image, error) {
	img := images.Image{Name: name, Target: target}
	made, err := d.client.ImageService().Create(ctx, img)
	if errdefs.IsAlreadyExists(err) {
		made, err = d.client.ImageService().Update(ctx, img, "target")
	}
	if err != nil {
		return nil, fmt.Errorf("image %s: note its name: %w", name, err)
	}
	return containerd.NewImage(d.client, made), nil
}
